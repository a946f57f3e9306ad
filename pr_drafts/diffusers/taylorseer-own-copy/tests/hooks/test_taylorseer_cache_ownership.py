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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stored_output_does_not_change_when_its_buffer_is_reused(dtype):
    state = TaylorSeerState(taylor_factors_dtype=dtype, max_order=1)
    buffer = torch.ones(1, 4, dtype=dtype)
    state.current_step = 0
    state.update((buffer,))
    buffer.zero_()

    state.current_step = 1
    (predicted,) = state.predict()

    assert torch.equal(predicted, torch.ones(1, 4, dtype=dtype))
