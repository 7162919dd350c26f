"""Statistics that several packages report: intervals, calibration, ranks, correlations, corrections for many tests.

- ``intervals``: :class:`Interval`; :func:`clopper_pearson` of a proportion, :func:`proportion_difference` of two and
  :func:`mean_interval` of a mean;
- ``auroc``: area under the ROC curve, its standard error and its interval;
- ``correlation``: Spearman's correlation with its interval, reliability, correction for attenuation;
- ``calibration``: temperature and noise floor of class probabilities;
- ``column_ranks``: rank correlations of many columns at once;
- ``multiplicity``: p-values adjusted for several tests.
"""

from kernelmem.statistics.auroc import auroc as auroc
from kernelmem.statistics.auroc import auroc_from_midranks as auroc_from_midranks
from kernelmem.statistics.auroc import auroc_interval as auroc_interval
from kernelmem.statistics.auroc import auroc_standard_error as auroc_standard_error
from kernelmem.statistics.calibration import calibrated_probabilities as calibrated_probabilities
from kernelmem.statistics.calibration import fit_calibration as fit_calibration
from kernelmem.statistics.calibration import label_probabilities as label_probabilities
from kernelmem.statistics.calibration import output_spread as output_spread
from kernelmem.statistics.column_ranks import centered_ranks as centered_ranks
from kernelmem.statistics.column_ranks import column_correlations as column_correlations
from kernelmem.statistics.correlation import attenuation_corrected as attenuation_corrected
from kernelmem.statistics.correlation import spearman as spearman
from kernelmem.statistics.correlation import spearman_brown as spearman_brown
from kernelmem.statistics.correlation import spearman_interval as spearman_interval
from kernelmem.statistics.intervals import Interval as Interval
from kernelmem.statistics.intervals import as_level as as_level
from kernelmem.statistics.intervals import clopper_pearson as clopper_pearson
from kernelmem.statistics.intervals import mean_interval as mean_interval
from kernelmem.statistics.intervals import proportion_difference as proportion_difference
from kernelmem.statistics.multiplicity import benjamini_hochberg as benjamini_hochberg
from kernelmem.statistics.multiplicity import holm as holm
