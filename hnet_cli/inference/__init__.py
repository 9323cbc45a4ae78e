"""Use of a trained model: generation, windows over long documents, chunks and their rendering."""
