"""The endpoints, one file per kind: thin functions from a checked body to an answer."""
