"""The networks that dimensions ask: which there are, and how each is loaded."""
