"""Attribution of outputs to training examples, tested against retraining."""
