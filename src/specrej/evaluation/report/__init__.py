"""The page of a run: report.html, one file that needs no network, and its figures in plots/ as SVG and PNG.

    write_report("out")                        # -> out/report.html

A bench gives the efficiency curve, costs, tables, races and answers; a trace with a replay gives the Pareto front and
the correlations. All numbers come from `metrics` and `replay`; here they are only put into words, rows and figures.
"""

from specrej.evaluation.report.writing import write_report

__all__ = ["write_report"]
