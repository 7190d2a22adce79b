// Gathers LANES words to one, the first one lowest, while the one before waits at the output.
module lk_widen #(
  parameter WIDTH = 8,
  parameter LANES = 2,
  parameter BITS = 1
) (
  input wire clk,
  input wire rst,
  input wire [WIDTH-1:0] in,
  input wire in_valid,
  output wire in_ready,
  output reg [WIDTH*LANES-1:0] out,
  output reg out_valid,
  input wire out_ready
);
  localparam [31:0] LAST = LANES - 1;
  reg [WIDTH*(LANES-1)-1:0] words;
  reg [BITS-1:0] count;
  wire [WIDTH*LANES-1:0] gathered = {in, words};
  wire last = count == LAST[BITS-1:0];
  assign in_ready = ~last | ~out_valid | out_ready;
  wire taken = in_valid & in_ready;
  always @(posedge clk) begin
    if (taken) words <= gathered[WIDTH*LANES-1:WIDTH];
    if (taken & last) out <= gathered;
  end
  always @(posedge clk) begin
    if (rst) begin
      count <= 0;
      out_valid <= 1'b0;
    end else begin
      if (taken) count <= last ? {BITS{1'b0}} : count + 1'b1;
      out_valid <= (taken & last) | (out_valid & ~out_ready);
    end
  end
endmodule
