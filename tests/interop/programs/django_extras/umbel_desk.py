from umbel import Umbel

app = Umbel("desk", broker="sqlite://")
