"""The engine: stages as values, parts cached by content, manifests, plans, execution on Ray and lineage.

Knows neither vision nor language.
"""
