// What every drawing of an axis is given.
import type { Axis } from "../protocol";

/** One axis, what a query takes from it, and where the query itself stands on it (or -1). */
export interface AxisProps { axis: Axis; weights: Float32Array; query: number; chosen: number; onChoose: (at: number) => void }
