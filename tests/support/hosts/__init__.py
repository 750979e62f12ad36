"""Programs that host a model, as real files that tests start, and what those tests share."""
