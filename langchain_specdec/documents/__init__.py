"""Documents that are longer than the context of a model: their pieces, and summaries of them."""
