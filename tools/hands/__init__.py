"""Episodes of a simulated right hand that reaches for, grasps and moves things, rendered by MuJoCo."""
