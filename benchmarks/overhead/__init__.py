"""What the noise mask costs: time, memory and kernels of a training step, beside the authors' recipe.

Every configuration builds all its arms (the plain step and its rivals) side by side and times them interleaved, in a
shuffled order within each repetition, so that a disturbance of the machine meets all of them alike. A cost is the
median over repetitions of the ratio to the plain step of the same repetition; its interval is that of the median from
order statistics (95 %, no distribution assumed). The arm "plain again" is the plain step once more: how far its
interval lies from 1 is what this machine cannot resolve. On a CPU, whose noise hides some per cent, the time that the
package's hooks take is read within each step as well, and compared with the rest of the same step: all but what the
classifier may lose by it (caches). Peak memory is the most that PyTorch's allocator holds at once for an arm, with its
model and optimizer; on a CPU it is counted from the profiler's record, and the same in every run.
"""
