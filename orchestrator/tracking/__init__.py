"""MLflow as a mirror of the registry: runs, models, aliases. The only importer of mlflow."""
