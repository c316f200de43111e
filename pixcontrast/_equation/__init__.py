"""The equation, side by side: `dense` (textbook), `tiled` (bounded memory), `mined` (tiled, with
a choice of entries). `functional.info_nce` checks the arguments and picks one.
"""
