"""Small language model that memorizes secrets: documents, canaries and network of the built-in audit."""
