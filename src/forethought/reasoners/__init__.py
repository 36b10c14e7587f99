"""Language models that think before they answer: the embedded reasoner, its training, rollouts and their grading."""
