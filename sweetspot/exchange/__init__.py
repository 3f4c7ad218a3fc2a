"""Pools from elsewhere and pools for elsewhere, and the care of the store: `python -m sweetspot.store COMMAND`.

command      the command line
inventory    ls, du: what lies in a store, from meta.json and Parquet footers
check        verify, gc: what is damaged, orphaned or left over
rows         the rows of files made elsewhere, and what is wrong with them
tokens       token ids for responses that were not sampled here
importing    import: a pool of such rows
exporting    export: pairs, samples and rewards as data sets with a card
"""
