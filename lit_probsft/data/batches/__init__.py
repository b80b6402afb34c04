"""Documents to micro-batches: the plan, packing, the token store, loaders."""
