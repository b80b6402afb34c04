"""The folder of a run and what it leaves: record, metrics, exported model, model card, upload."""
