"""Tables 1 and 2 and Figures 2 to 4 of the paper, for any model and reward: `specrej reproduce
paper`.

`published` has the paper's own numbers, `plan` says what is run and where, `outcome` makes the
figures of what was run, `scatter` and `page` show them. Table 1 is the row `alpacafarm` with more
methods, Table 2 the row `perplexity`. Figure 3 rests on Table 1's answers, Figures 2 and 4 on a
trace.

The paper: Sun, Haider, Zhang et al., "Fast Best-of-N Decoding via Speculative Rejection", NeurIPS
2024, arXiv 2410.20290.
"""
