"""The claims that layer normalization is known by, tried on real data that ships inside Python packages.

data.py          the data sets
nets.py          the nets, with and without norms
experiments.py   one function each for what is run: plain numbers of plain arguments, so that processes share the work
verdicts.py      what each claim asks of those numbers, stated before they are known
page.py          plots, and one HTML page
run.py           all of it: `python -m benchmarks claims`
"""
