"""Many prompt encoders as stacked tensors: run as batched products, stepped by one optimizer."""
