"""The paper's figures (arXiv 2512.13525v3, figures 1 to 4 and 8 to 17) with this repository's code.

    python -m paper [--only 3 9] [--out DIR]                (plots need matplotlib)

One module per figure. `data` is a pure function of the seed, `plot` draws what it returns, and
`compare` puts the paper's numbers beside it. Nothing here measures a GPU: every caption says what
is measured, fitted, modelled or synthetic.
"""
