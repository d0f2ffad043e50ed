"""Turn arrays into pictures: one namespace, `show.headline(...)`. Nothing here knows a task or a file."""

from vpo_lab.show.bars import *  # noqa: F403
from vpo_lab.show.budgets import *  # noqa: F403
from vpo_lab.show.evolving import *  # noqa: F403
from vpo_lab.show.explorer import Explorer  # noqa: F401
from vpo_lab.show.hacking import *  # noqa: F403
from vpo_lab.show.live import inline_pictures
from vpo_lab.show.mechanism import *  # noqa: F403
from vpo_lab.show.side_by_side import side_by_side  # noqa: F401
from vpo_lab.show.style import *  # noqa: F403
from vpo_lab.show.training import *  # noqa: F403
from vpo_lab.show.vectors import *  # noqa: F403

inline_pictures()
