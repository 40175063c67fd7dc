"""Why a row is in the corpus or not, and what another threshold would change; answered from stage outputs.

row_index   finds a row by key or URL among all sources: one small file for each question
parallel    work on many files by all CPUs
trace       follows it through the stages, with the values that were compared and the thresholds
dropped     the rows that one node dropped, by rule, with reasons
unfinished  makes both work for nodes that broke off or came out empty
what_if     applies other thresholds to stored values and prints the new funnel; nothing is run
"""
