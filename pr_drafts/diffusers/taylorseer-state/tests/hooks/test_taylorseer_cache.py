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


def run_updates(state, *steps):
    for outputs in steps:
        state.current_step += 1
        state.update(outputs)
    state.current_step += 1


class TestTaylorSeerState:
    def test_outputs_may_have_different_orders(self):
        state = TaylorSeerState(taylor_factors_dtype=torch.float32, max_order=1)
        first, second = torch.ones(1, 4, 8), torch.ones(1, 6, 8)
        # The second output appears one step later, so its expansion has one order less.
        run_updates(state, (first,), (2 * first, 5 * second))
        predicted = state.predict()
        assert torch.allclose(predicted[0], 3 * first)
        assert torch.allclose(predicted[1], 5 * second)

    def test_straight_line_is_exact(self):
        state = TaylorSeerState(taylor_factors_dtype=torch.float32, max_order=1)
        first, second = torch.randn(1, 4, 8), torch.randn(1, 6, 8)
        run_updates(state, (first, second), (2 * first, 3 * second))
        predicted = state.predict()
        assert torch.allclose(predicted[0], 3 * first, atol=1e-5)
        assert torch.allclose(predicted[1], 5 * second, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_keeps_no_live_output(self, dtype):
        state = TaylorSeerState(taylor_factors_dtype=dtype)
        output = torch.ones(1, 4, 8, dtype=dtype)
        run_updates(state, (output,))
        output.zero_()
        assert torch.equal(state.predict()[0], torch.ones(1, 4, 8, dtype=dtype))

    def test_other_dtype_is_converted(self):
        state = TaylorSeerState(taylor_factors_dtype=torch.bfloat16)
        output = torch.ones(1, 4, 8)
        run_updates(state, (output,))
        assert state.taylor_factors[0][0].dtype == torch.bfloat16
        assert state.predict()[0].dtype == torch.float32
