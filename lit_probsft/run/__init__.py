"""The folder of a run and its files: record, metrics, exported model, model card; and the upload to the hub."""
