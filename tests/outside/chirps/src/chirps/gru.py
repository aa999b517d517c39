"""A recurrent network over the samples of a wave."""

from torch import nn


class WaveGRU(nn.Module):
    def __init__(self, input_shape, outputs, width=16):
        super().__init__()
        self.rnn = nn.GRU(1, width, batch_first=True)
        self.fc = nn.Linear(width, outputs) if outputs else nn.Identity()

    def forward(self, x):
        h, _ = self.rnn(x.unsqueeze(-1))
        return self.fc(h[:, -1])
