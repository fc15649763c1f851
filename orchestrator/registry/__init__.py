"""The SQL registry: base models, jobs, prompt versions, aliases and the outbox.

The only importer of sqlalchemy. One public method is one transaction, takes and returns frozen
values of the domain, and calls no storage, Ray or MLflow; rows never leave this package.
"""
