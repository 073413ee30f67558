"""From a log to batches: sources, preparation, the dataset folder, batches, and the simulator."""
