"""One file per family of operators: how it is lowered to an anchor, and the loop nest that the anchor gets."""
