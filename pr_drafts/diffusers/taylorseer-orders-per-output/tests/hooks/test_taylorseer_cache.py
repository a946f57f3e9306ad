# Copyright 2026 HuggingFace Inc.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

import pytest
import torch

from diffusers.hooks.taylorseer_cache import TaylorSeerState


class TestTaylorSeerState:
    def _record(self, state, step, *outputs):
        state.current_step = step
        state.update(outputs)

    @pytest.mark.parametrize("changed", [0, 1])
    def test_an_output_that_changes_shape_restarts_alone(self, changed):
        state = TaylorSeerState(taylor_factors_dtype=torch.float32, max_order=1)
        lengths = [4, 4]
        self._record(state, 0, *(torch.full((1, n), 1.0) for n in lengths))
        lengths[changed] = 6
        self._record(state, 1, *(torch.full((1, n), 2.0) for n in lengths))

        state.current_step = 3
        predicted = state.predict()

        assert torch.equal(predicted[1 - changed], torch.full((1, 4), 4.0))  # the line 1, 2, (3), 4
        assert torch.equal(predicted[changed], torch.full((1, 6), 2.0))  # restarted: the newest value

        self._record(state, 4, torch.full((1, lengths[0]), 5.0), torch.full((1, lengths[1]), 5.0))
        state.current_step = 5
        assert torch.equal(state.predict()[changed], torch.full((1, 6), 6.0))  # two values of one shape: a line again
