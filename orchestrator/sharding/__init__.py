"""DeepSpeed around a frozen base, for training and inference: knows neither tasks nor rows."""
