"""Tables as the world writes them: CSV, TSV, JSON lines and Parquet, plain or compressed, in bounded memory.

A row that is no good is a `BadRow` with its number and a rule, and the rest is read. Only a file that is not of its
format at all raises `UnreadableTable`.
"""
