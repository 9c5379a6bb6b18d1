// The properties of every drawing of an axis.
import type { Axis } from "../protocol";

/** One axis, the weights of a query over it, and the position of the query itself on it (or -1). */
export interface AxisProps { axis: Axis; weights: Float32Array; query: number; chosen: number; onChoose: (at: number) => void }
