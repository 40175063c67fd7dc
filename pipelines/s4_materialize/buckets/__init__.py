"""Comparing all rows in parts of bounded size: which rows must be seen together, and stars among those.

    evidence ─► near ─► components ─► exact ─► (decontaminate) ─► stars ─► (deduplicate)

    test_index ─► leaks ─► (decontaminate)

`evidence` sends the rows of a group of upstream parts to buckets by what they look like, `near` links looks that may
match, `components` names what is linked, `exact` keeps the rows that are not alone in a component and sends those of
one component to one bucket, its home. What is decided there is what would be decided about all rows in one table
(`x2vlm.data.duplicates.components`).
"""
