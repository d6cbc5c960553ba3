"""Nonlinear conjugate gradients for JAX, as Optax gradient transformations."""

from optax_nlcg import parallel as parallel
from optax_nlcg import reference as reference
from optax_nlcg.accumulation import MultiStepsState as MultiStepsState
from optax_nlcg.accumulation import multi_steps as multi_steps
from optax_nlcg.alias import limited_memory_cg as limited_memory_cg
from optax_nlcg.alias import nlcg as nlcg
from optax_nlcg.alias import nonlinear_cg as nonlinear_cg
from optax_nlcg.beta import BETA_RULES as BETA_RULES
from optax_nlcg.beta import BetaRule as BetaRule
from optax_nlcg.beta import InnerProducts as InnerProducts
from optax_nlcg.bfgs import DiagonalBfgsState as DiagonalBfgsState
from optax_nlcg.bfgs import scale_by_diagonal_bfgs as scale_by_diagonal_bfgs
from optax_nlcg.curvature import hessian_diagonal as hessian_diagonal
from optax_nlcg.curvature import (
    value_grad_and_hessian_diagonal as value_grad_and_hessian_diagonal,
)
from optax_nlcg.curvature_search import (
    CurvatureLineSearchState as CurvatureLineSearchState,
)
from optax_nlcg.curvature_search import (
    scale_by_curvature_line_search as scale_by_curvature_line_search,
)
from optax_nlcg.direction import ConjugateDirectionState as ConjugateDirectionState
from optax_nlcg.direction import (
    scale_by_conjugate_direction as scale_by_conjugate_direction,
)
from optax_nlcg.hessian_preconditioner import (
    HessianDiagonalState as HessianDiagonalState,
)
from optax_nlcg.hessian_preconditioner import (
    scale_by_hessian_diagonal as scale_by_hessian_diagonal,
)
from optax_nlcg.loss_search import LossLineSearchState as LossLineSearchState
from optax_nlcg.loss_search import (
    scale_by_online_line_search as scale_by_online_line_search,
)
from optax_nlcg.loss_search import (
    scale_by_step_line_search as scale_by_step_line_search,
)
from optax_nlcg.minimize import MinimizeResult as MinimizeResult
from optax_nlcg.minimize import minimize as minimize
from optax_nlcg.orthogonal import (
    scale_by_orthogonalization as scale_by_orthogonalization,
)
from optax_nlcg.solver_loop import Status as Status
from optax_nlcg.value_and_grad import (
    value_and_grad_from_state as value_and_grad_from_state,
)
from optax_nlcg.wolfe_search import (
    HagerZhangLineSearchState as HagerZhangLineSearchState,
)
from optax_nlcg.wolfe_search import SearchOutcome as SearchOutcome
from optax_nlcg.wolfe_search import (
    scale_by_hager_zhang_line_search as scale_by_hager_zhang_line_search,
)
