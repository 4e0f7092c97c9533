"""KV held in groups: one prompt read once, and a dense block for what its candidates wrote.

The torch engine and causal reward models stand on it. `layout` says how much is held, `groups` and
`prefixes` hold it, `attention` reads it, `linear` packs the layers around it.
"""
