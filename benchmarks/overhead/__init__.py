"""The cost of a mask in time, memory and kernels of a training step, beside plain training.

Every configuration compares several variants of a training step: the plain step, the package's, and others. They are
timed in turn, in a shuffled order within each repetition, so that disturbances of the machine affect all of them alike.
The cost is the ratio to the plain step of the same repetition, as the median over repetitions. Its 95 % interval comes
from order statistics and assumes no distribution. "plain again" repeats the plain step: the distance of its interval
from 1 shows what this machine cannot measure.

CPU timings vary by a few per cent. There the time in the package's hooks is also measured within each step and compared
with the rest of the same step. This leaves out any slowdown of the classifier itself (cache effects, for example). Peak
memory is the most that PyTorch's allocator holds at once for a variant with its model and optimizer. On a CPU it is
computed from the profiler's record and is the same in every run.
"""
