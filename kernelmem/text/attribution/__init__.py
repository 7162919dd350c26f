"""Documents that taught a language model what it emits.

- ``teachers``: :func:`teachers`, from a recorded run, and :func:`tangent_teachers`, from one model;
- ``result``: contributions of documents to the bits of every token;
- ``page``: the sentence and its teachers as highlighted text;
- ``question``: what is asked, and options;
- ``recorded_documents``: documents compared with those of the run;
- ``shared_spans``: token spans that documents share with a sentence;
- ``neighbours``: a model with a memory of documents, and the nearest of them.
"""

from kernelmem.text.attribution.neighbours import NeighbourMemory as NeighbourMemory
from kernelmem.text.attribution.neighbours import neighbour_memory as neighbour_memory
from kernelmem.text.attribution.question import TeachersOptions as TeachersOptions
from kernelmem.text.attribution.result import Teachers as Teachers
from kernelmem.text.attribution.teachers import tangent_teachers as tangent_teachers
from kernelmem.text.attribution.teachers import teachers as teachers
