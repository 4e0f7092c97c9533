"""The heart: Best-of-N and Speculative Rejection (Sun et al., NeurIPS 2024, Algorithm 1). Knows no tensor.

Read `algorithms` first, then `policies` (when to decide, whom to keep), `search` (one prompt), `scheduler` and `pool`
(many prompts over one engine).
"""
