"""Makes a draft for a model out of the model's own answers: prompts, answers, states, training, verdict."""
