"""How much of a policy gradient is signal? Estimators compared by batch size and grid, on a half-trained classifier.

Every estimator sees the same images, masks and losses. With g the gradient of one batch, in the policy's parameters,

    SNR = ||E g||^2 / E ||g - E g||^2

over images and masks. From R independent batches of variance S^2 = sum ||g_r - mean g||^2 / (R - 1) the numerator is
estimated without bias by ||mean g||^2 - S^2 / R, which can be negative if there is no signal. The SNR of a biased
estimator measures how consistent its direction is. Whether the direction is right is measured by the cosine to the
reference, the pathwise gradient of all the *other* samples of the pool, which shares no draw with the batch.

The classifier is in eval mode, as BatchNorm would make each loss depend on the other images' masks.
"""
