export function ContextView() { return null; }
