"""Recurrent layers: nn.RNN, nn.LSTM, nn.GRU and cells, unrolled into linear maps that the linear rule covers.

torch's fused kernels give no per-example derivatives, and ``vmap(jacrev)`` does not support them. Unrolled, each weight
is used once per step, and its uses are positions of one outer-product tangent.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernelmem.tangents.capture import Decomposition, Function

LAYERS = {torch.rnn_tanh: "rnn_tanh", torch.rnn_relu: "rnn_relu", torch.lstm: "lstm", torch.gru: "gru"}
CELLS = {
    torch.rnn_tanh_cell: "rnn_tanh",
    torch.rnn_relu_cell: "rnn_relu",
    torch.lstm_cell: "lstm",
    torch.gru_cell: "gru",
}


class RecurrentRule(Decomposition):
    """Elman networks, LSTM (Hochreiter and Schmidhuber 1997; with projections), GRU (Cho et al. 2014)."""

    functions = (*LAYERS, *CELLS)

    def expand(self, function: Function, args: tuple, kwargs: dict) -> object:
        """Return the outputs of the fused torch function ``function`` (e.g. torch.lstm), up to rounding, or NotImplemented.

        NotImplemented means that this form of the call (packed sequences) is not covered.
        """
        if function in CELLS:
            return self._expand_cell(CELLS[function], *args, **kwargs)
        if len(args) != 9 or kwargs or not isinstance(args[3], bool):  # packed sequences: data, batch_sizes, ...
            return NotImplemented
        kind = LAYERS[function]
        x, state, weights, has_biases, layers, dropout, training, bidirectional, batch_first = args
        initial_hidden, initial_cells = state if kind == "lstm" else (state, None)
        if batch_first:
            x = x.transpose(0, 1)
        n_directions = 2 if bidirectional else 1
        n_parameters = len(weights) // (layers * n_directions)
        last_hidden, last_cells = [], []
        for layer in range(layers):
            outputs = []
            for direction in range(n_directions):
                index = layer * n_directions + direction
                parameters = weights[index * n_parameters : (index + 1) * n_parameters]
                w_in, w_hidden = parameters[0], parameters[1]
                b_in, b_hidden = (parameters[2], parameters[3]) if has_biases else (None, None)
                projection = parameters[-1] if n_parameters == (5 if has_biases else 3) else None
                h = initial_hidden[index]
                c = None if initial_cells is None else initial_cells[index]
                steps = range(len(x) - 1, -1, -1) if direction else range(len(x))
                input_terms = F.linear(x, w_in, b_in)  # all steps at once: it does not depend on the state
                hidden_states: list[Tensor] = [h] * len(x)
                for t in steps:
                    h, c = _run_step(kind, input_terms[t], h, c, w_hidden, b_hidden, projection)
                    hidden_states[t] = h
                outputs.append(torch.stack(hidden_states))
                last_hidden.append(h)
                last_cells.append(c)
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
            if training and dropout and layer < layers - 1:
                x = F.dropout(x, dropout, training=True)  # torch draws the same numbers
        result = x.transpose(0, 1) if batch_first else x
        if kind == "lstm":
            return result, torch.stack(last_hidden), torch.stack(last_cells)
        return result, torch.stack(last_hidden)

    @staticmethod
    def _expand_cell(
        kind: str,
        x: Tensor,
        state: Tensor | tuple[Tensor, Tensor],
        w_in: Tensor,
        w_hidden: Tensor,
        b_in: Tensor | None = None,
        b_hidden: Tensor | None = None,
    ) -> object:
        """Run one step of an RNN, GRU or LSTM cell on ``x`` and return its new state (h, or (h, c) for LSTM)."""
        h, c = (state, None) if isinstance(state, Tensor) else state
        h, c = _run_step(kind, F.linear(x, w_in, b_in), h, c, w_hidden, b_hidden, None)
        return (h, c) if kind == "lstm" else h


def _run_step(
    kind: str,
    input_term: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_hidden: Tensor,
    b_hidden: Tensor | None,
    projection: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Compute one step of one layer; return the new hidden state, and the new cell state for an LSTM (otherwise None)."""
    state_term = F.linear(h, w_hidden, b_hidden)
    if kind == "lstm":
        assert c is not None
        gate_in, gate_forget, candidate, gate_out = (input_term + state_term).chunk(4, -1)
        c = torch.sigmoid(gate_forget) * c + torch.sigmoid(gate_in) * torch.tanh(candidate)
        h = torch.sigmoid(gate_out) * torch.tanh(c)
        return (h if projection is None else F.linear(h, projection)), c
    if kind == "gru":
        reset_in, update_in, new_in = input_term.chunk(3, -1)
        reset_state, update_state, new_state = state_term.chunk(3, -1)
        update = torch.sigmoid(update_in + update_state)
        candidate_state = torch.tanh(new_in + torch.sigmoid(reset_in + reset_state) * new_state)
        return (1 - update) * candidate_state + update * h, None
    preactivation = input_term + state_term
    return (torch.tanh(preactivation) if kind == "rnn_tanh" else torch.relu(preactivation)), None
