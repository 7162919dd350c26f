"""scikit-learn estimators of kernel machines, and kernels for them."""
