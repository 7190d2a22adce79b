// Gathers LANES words to one, the first one lowest; the next ones while that one waits.
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
  reg [BITS-1:0] count;
  // The lowest word is never read: it is the place for one more.
  reg [WIDTH*LANES-1:0] gathered;
  wire last = count == LAST[BITS-1:0];
  wire [WIDTH*LANES-1:0] next = {in, gathered[WIDTH*LANES-1:WIDTH]};
  assign in_ready = ~last | ~out_valid | out_ready;
  wire taken = in_valid & in_ready;
  always @(posedge clk) begin
    if (taken) gathered <= next;
    if (taken & last) out <= next;
  end
  always @(posedge clk) begin
    if (rst) begin
      count <= 0;
      out_valid <= 1'b0;
    end else begin
      if (taken) count <= last ? {BITS{1'b0}} : count + 1'b1;
      if (~out_valid | out_ready) out_valid <= taken & last;
    end
  end
endmodule
