"""The page of `hnet play`: chunks of what one types, and the local server that computes them."""
