"""The two roles of the pipeline, stage and coordinator: they connect models, schedules and channels."""
