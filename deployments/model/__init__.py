"""Sam2Model, the GPU deployment, and the engine that it drives."""
