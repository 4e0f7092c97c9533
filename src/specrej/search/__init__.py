"""The heart: Best-of-N and Speculative Rejection (Sun et al., NeurIPS 2024, Algorithm 1). Knows no
tensor.

Read `algorithms` first, with what they see of a search (`view`) and the policies (when to decide,
whom to keep). Then `search` (one prompt) with its memory (`budget`), its reward's session
(`rewarding`) and its seconds (`clock`). Then `scheduler`, `pool` and `scoring` (many prompts over
one engine). `choosing` says which candidate is better, `stopping` where an answer's text ends.
"""
