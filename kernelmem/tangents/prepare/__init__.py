"""Preparation of a model for per-example derivatives: a private copy, one dtype, eval mode, plain execution."""

from kernelmem.tangents.prepare.evaluation_mode import check_eval_mode as check_eval_mode
from kernelmem.tangents.prepare.graph import graph_leaves as graph_leaves
from kernelmem.tangents.prepare.prepared_model import PreparedModel as PreparedModel
from kernelmem.tangents.prepare.prepared_model import check_rows as check_rows
from kernelmem.tangents.prepare.prepared_model import prepare as prepare
